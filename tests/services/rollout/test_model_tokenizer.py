"""Texts and chats -> token ids and back, with the byte tokenizer; what a model's folder must hold."""

import pytest

from services.rollout.model_tokenizer import ModelTokenizer, load_tokenizer
from services.rollout.refusals import GroupRejected
from services.trainer.tiny_model import byte_tokenizer, write_tiny_model
from shared.errors import RunRejected

PAD, START, END = 256, 257, 258
CHAT = [{"role": "user", "content": "2+2"}]


def test_a_text_prompt_gets_no_special_tokens(tokenizer):
    assert tokenizer.encode(tokenizer.prompt_text("2+2=")) == tokenizer.encode("2+2=")
    assert len(tokenizer.encode("2+2=")) == 4


def test_chat_messages_end_with_the_generation_prompt(tokenizer):
    text = tokenizer.prompt_text(CHAT)
    assert text == "<|im_start|>user\n2+2<|im_end|>\n<|im_start|>assistant\n"
    assert [i for i in tokenizer.encode(text) if i > 255] == [START, END, START]


def test_text_becomes_a_user_message_where_the_run_says_so(tokenizer):
    assert ModelTokenizer(byte_tokenizer(), always_chat=True).prompt_text("2+2") == tokenizer.prompt_text(CHAT)


def test_many_texts_are_encoded_as_one_by_one(tokenizer):
    texts = ["2+2=", "", "<|im_end|>ü"]
    assert tokenizer.encode_all(texts) == [tokenizer.encode(text) for text in texts]


def test_special_tokens_are_cut_off_the_end_of_a_text_only(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("4<|im_end|>5"), END, PAD]) == "4<|im_end|>5"
    assert tokenizer.decode([END]) == ""


@pytest.mark.parametrize(("after_eos", "start"), [(True, "\n"), (False, "<|im_end|>\n")])
def test_the_text_of_the_next_turn_follows_the_answer_without_a_gap(tokenizer, after_eos, start):
    following = tokenizer.following_text([{"role": "tool", "content": "4"}], after_eos)
    assert following == start + "<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"


def test_messages_that_the_template_refuses_reject_the_group():
    strict = byte_tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(GroupRejected, match="roles must alternate"):
        ModelTokenizer(strict).prompt_text(CHAT)


def test_a_template_that_is_missing_rejects_the_group():
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(GroupRejected, match="chat template"):
        ModelTokenizer(bare).prompt_text(CHAT)


def test_a_models_folder_is_loaded_and_its_limits_known(tmp_path):
    write_tiny_model(tmp_path, seed=0)
    loaded = load_tokenizer(tmp_path, trust_remote_code=False, always_chat=True)
    assert (loaded.vocabulary, loaded.eos_id, loaded.context) == (261, END, 2048)


def test_a_missing_folder_rejects_the_run_with_its_name(tmp_path):
    with pytest.raises(RunRejected, match="nowhere is not a folder"):
        load_tokenizer(tmp_path / "nowhere", False, False)


def test_a_folder_without_a_tokenizer_rejects_the_run(tmp_path):
    with pytest.raises(RunRejected, match="no tokenizer that loads"):
        load_tokenizer(tmp_path, False, False)


def test_a_model_whose_tokenizer_files_are_missing_rejects_the_run(tmp_path):
    write_tiny_model(tmp_path, seed=0)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(RunRejected, match=r"has no tokenizer, only a model; add tokenizer.json"):
        load_tokenizer(tmp_path, False, False)


def test_a_chat_run_on_a_model_without_a_template_is_rejected(tmp_path):
    bare = byte_tokenizer()
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(RunRejected, match="has no chat template"):
        load_tokenizer(tmp_path, False, always_chat=True)
    assert load_tokenizer(tmp_path, False, always_chat=False).vocabulary == 261


def test_a_tokenizer_without_an_end_rejects_the_run(tmp_path):
    endless = byte_tokenizer()
    endless.eos_token = None
    endless.save_pretrained(tmp_path)
    with pytest.raises(RunRejected, match="no eos_token"):
        load_tokenizer(tmp_path, False, False)
