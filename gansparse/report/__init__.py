# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, as a table, as figures, and as one self-contained HTML page."""

from gansparse.report.document import Group, Report, Run, load_history, load_report, load_samples
from gansparse.report.figures import (
    fid_bars,
    fid_sweep,
    loss_curves,
    residual_rows,
    sample_grids,
)
from gansparse.report.html import write_report
from gansparse.report.table import fid_table, headline, to_csv, to_markdown

__all__ = [
    "Group",
    "Report",
    "Run",
    "fid_bars",
    "fid_sweep",
    "fid_table",
    "headline",
    "load_history",
    "load_report",
    "load_samples",
    "loss_curves",
    "residual_rows",
    "sample_grids",
    "to_csv",
    "to_markdown",
    "write_report",
]
