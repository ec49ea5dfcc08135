"""The parts of a pull: what is asked of a server, how it is checked, where it is put."""
