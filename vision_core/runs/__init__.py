"""The folder of a run: what is in it, who may write to it, how it is read again."""
