"""Reading and writing files so that a fault loses nothing, and a stranger's file does no harm."""
