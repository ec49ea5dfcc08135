"""The meaning of recorded data: names, values, events, frames and their fold. No file, no clock, no thread."""
