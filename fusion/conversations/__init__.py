"""From files of conversations to batches of tokens.

sources, stream             open files, tables, drawn scenes and streams
rows, turns, placeholders   read and check a row and its turns
images                      reads the images of a row
scene_turns                 makes questions about drawn scenes
conversation                what all of these give: a `Conversation`
tokens                      turns a conversation into tokens and labels
batches, packing            make training samples and batches of them
mixtures, stream_data       mix several sources into a data set
clean_rows                  writes the good rows of a source to a file
"""
