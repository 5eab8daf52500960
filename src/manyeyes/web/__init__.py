"""What a node shows to a browser or a monitor on its own machine."""
