"""One module for each library that encoders come from. Each gives, for its kind of source,

    load(name, *, source, image_size, dtype, **options)       the encoder with its weights
    untrained(name, *, source, image_size, dtype, **options)  the same architecture, random weights
    build(config, *, dtype, attn_implementation)              what an `EncoderConfig` describes
    check(name, *, source, has_weights)                       UserError for a name that does not exist

and leaves out what its kind does not have. `name` is what follows the kind in the source text, and
`source` the text itself, for messages. `image_size` is (height, width) or None for the published
size. `options` are those of `Encoder`, and of DINOv2's positions (`encoders/positions.py`), which
most kinds refuse. `check` reads configs and lists of names, and no weights.

To add a library: write such a module, and name it in `encoders/load.py` under its kind, in
`encoders/saved.py` under the library that its encoders say, and in `encoders/source_text.py`.
"""
