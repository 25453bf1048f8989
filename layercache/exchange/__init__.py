"""In and out: states, labels and rows as files of other tools, and states of other tools as a run. No torch."""

from layercache.exchange.exporting import Export, export_run
from layercache.exchange.found import Asked
from layercache.exchange.importing import Imported, Source, import_states
from layercache.exchange.query_files import export_table

__all__ = ["Asked", "Export", "Imported", "Source", "export_run", "export_table", "import_states"]
