# SPDX-License-Identifier: Apache-2.0
"""One table of samples an op, in the file of the op's name."""
