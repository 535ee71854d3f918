"""One module for each image format, and which of them reads a file.

A reader is a module (`pictures`, `tiff`, `arrays`, `dicom`, `nifti`, `fits`, `heif`) with

    read(data, num_channels, options, part) -> Stored
    count_parts(file, num_channels) -> int              where a file may hold several images

`data` is the content of a file, `file` an open one at its first byte, which is read no further than
its headers. `num_channels` is how many channels are asked for: it decides what counts as one image,
and bands of another number are refused. `options` are the `PixelOptions` of the source. `part`
counts the images of a file from 0; None is for a file of one image, and refused for another.

`read` gives the numbers as the file has them (`vision_core/images/stored.py`), upright, before
anybody decides what is black and what is white. It refuses by the header, before anything of the
promised size is allocated. Both functions raise UnreadableImage with a reason, and UserError where
an optional package is missing, which they import themselves.

To add a format: write a reader, name it in `by_content.py` with the first bytes of its files, and
its endings in `endings.py`.
"""
