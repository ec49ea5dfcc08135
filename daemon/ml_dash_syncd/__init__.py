"""The uploader: watches the journals of this machine and replays them to their servers."""
