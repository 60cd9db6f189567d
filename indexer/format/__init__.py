"""What is on disk: manifests, versions, segments and their parts, checked before use."""
