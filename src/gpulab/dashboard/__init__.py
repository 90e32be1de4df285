"""The live view as a web page of this computer: who may see it, what it shows, and when it looks again."""
