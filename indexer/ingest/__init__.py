"""Sources into rows of an index: `indexer.ingest.build` is the way in."""
