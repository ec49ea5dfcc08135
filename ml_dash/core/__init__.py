"""What is recorded and what it means: names, values, events, frames and their fold. No file, no clock, no thread."""
