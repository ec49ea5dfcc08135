"""Safe files: durable writes, locks, and the settings that say where data lies."""
