"""Export and import: copies, Parquet, clip-retrieval's folders."""
