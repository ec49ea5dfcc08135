"""The server's work without HTTP: accept, fold, store and answer."""
