"""`keel watch`: live pages of run directories. Reads them and nothing else."""
