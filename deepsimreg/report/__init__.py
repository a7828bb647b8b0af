"""One page about a registration, to look at; matplotlib is imported when it is drawn."""

from deepsimreg.report.write import check_report, report_numbers, write_report

__all__ = ["check_report", "report_numbers", "write_report"]
