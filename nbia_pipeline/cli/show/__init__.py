"""Commands that change nothing, and show what is there."""
