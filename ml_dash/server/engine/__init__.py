"""The server's work without HTTP: accept, fold, keep and answer."""
