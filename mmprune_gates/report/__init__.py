"""A pruning run as one page: the contents of its work directory, drawn and written as HTML."""

from mmprune_gates.report.page import write_report
from mmprune_gates.report.run import Run, read_run

__all__ = ['Run', 'read_run', 'write_report']
