"""What every wing uses and none owns: errors, documents, units, files, paths. Knows nothing of the work of r1prov."""
