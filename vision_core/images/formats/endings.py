"""How the names of image files end, in lower case. Imports nothing, so that a program can tell a
folder of images before it starts."""

ENDINGS_OF_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "NumPy array": (".npy",),
    "NumPy archive": (".npz",),
    "DICOM": (".dcm", ".dicom", ".ima"),
    "NIfTI": (".nii", ".nii.gz"),
    "FITS": (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz"),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif", ".hif"),
}
SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi")
# of everything that may be an image, whichever packages are installed
IMAGE_ENDINGS = (*(ending for endings in ENDINGS_OF_FORMATS.values() for ending in endings), *SLIDE_ENDINGS)
