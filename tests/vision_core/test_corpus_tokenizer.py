from transformers import AutoTokenizer

from vision_core.corpus_tokenizer import SPECIAL_TOKENS, VOCABULARY, corpus_tokenizer

TEXTS = [
    f"a {colour} {thing} on a plain backdrop"
    for colour in ("red", "green", "blue")
    for thing in ("cup", "fish", "house")
] * 20


def test_any_text_comes_back():
    tokenizer = corpus_tokenizer(TEXTS)
    for text in ("a red cup", "Größe: 3 €\n\tнеизвестно 🙂", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_of_the_corpus_are_short_and_the_vocabulary_is_small():
    tokenizer = corpus_tokenizer(TEXTS)
    assert len(tokenizer("a green house on a plain backdrop")["input_ids"]) == 7
    assert 256 < len(tokenizer) < VOCABULARY
    assert len(corpus_tokenizer(f"{number:x} " * 3 for number in range(60000, 66000))) == VOCABULARY


def test_special_tokens_are_never_cut():
    tokenizer = corpus_tokenizer(TEXTS, ["<|user|>"])
    assert (tokenizer.pad_token, tokenizer.eos_token) == tuple(SPECIAL_TOKENS.values())
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<|user|>cup</s>")["input_ids"])
    assert (tokens[0], tokens[-1]) == ("<|user|>", "</s>") and "".join(tokens[1:-1]) == "cup"


def test_the_same_texts_give_the_same_tokenizer_and_a_folder_keeps_it(tmp_path):
    first, second = (
        corpus_tokenizer(
            TEXTS, chat_template="{{ messages }}", model_max_length=7, model_input_names=["input_ids"]
        )
        for _ in range(2)
    )
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    first.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert loaded.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    assert loaded.chat_template == "{{ messages }}" and loaded.model_max_length == 7
    assert loaded(TEXTS[0], padding="max_length").keys() == {"input_ids"}
