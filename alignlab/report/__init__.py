"""One self-contained HTML page from an audit or from recorded runs: to read, to send, to put beside a paper.

A page holds its figures and its style; it needs no network, no script and no other file.
"""

from alignlab.report.pages import audit_page, run_page

__all__ = ["audit_page", "run_page"]
