"""Labels of a text's tokens, as every part of this package that trains or scores reads them."""

# A token with this label is not learnt: it belongs to a prompt, an image or padding. The value is
# the `ignore_index` of torch's cross-entropy, which the losses of transformers use too.
LABEL_IGNORED = -100
