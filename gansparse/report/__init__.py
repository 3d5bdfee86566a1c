# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, as a table, as figures, and as one self-contained HTML page."""

from gansparse.report.document import Failure, Group, Report, Run, load_history, load_report
from gansparse.report.figures import fid_bars, fid_sweep, loss_curves
from gansparse.report.html import write_markdown, write_report
from gansparse.report.pictures import (
    boxed_details,
    curves_over_pictures,
    picture_rows,
    residual_rows,
    sample_grids,
)
from gansparse.report.samples import load_samples
from gansparse.report.table import (
    failure_lines,
    fid_table,
    headline,
    markdown_page,
    metric_text,
    to_csv,
    to_markdown,
)

__all__ = [
    "Failure",
    "Group",
    "Report",
    "Run",
    "boxed_details",
    "curves_over_pictures",
    "failure_lines",
    "fid_bars",
    "fid_sweep",
    "fid_table",
    "headline",
    "load_history",
    "load_report",
    "load_samples",
    "loss_curves",
    "markdown_page",
    "metric_text",
    "picture_rows",
    "residual_rows",
    "sample_grids",
    "to_csv",
    "to_markdown",
    "write_markdown",
    "write_report",
]
