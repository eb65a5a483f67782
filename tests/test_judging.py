"""Judges behind a real local HTTP server that speaks OpenAI's chat protocol, and misbehaves on request."""

import numpy as np
import pytest
from PIL import Image

from unif2ace.training.chat_endpoint import ChatEndpoint, ChatEndpointError, CutOffAnswerError
from unif2ace.training.evaluation.metrics import ConversationScore, DescriptionScore, VlmScore
from unif2ace.training.evaluation.metrics.judged import (
    JudgePrompt,
    UnusableRatingError,
    item_means,
    parse_rating,
    rate,
    summarize_ratings,
)


@pytest.fixture
def endpoint(chat_server):
    return ChatEndpoint(chat_server.url, "judge-1", api_key="secret", max_retries=2)


PROMPT = JudgePrompt("test", "1", "Rate {thing}.", 1, 10)


def test_a_question_with_a_picture(chat_server, endpoint):
    chat_server.replies = ["Fine."]
    assert endpoint.ask("How?", Image.new("RGB", (4, 4)), system="Be kind.", seed=7) == "Fine."
    (request,) = chat_server.requests
    assert request["path"] == "/v1/chat/completions" and request["key"] == "Bearer secret"
    assert request["model"] == "judge-1" and request["seed"] == 7 and request["messages"][0]["role"] == "system"
    image, text = request["messages"][1]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,") and text == {"type": "text", "text": "How?"}


def test_what_passes_is_tried_again_and_what_stays_is_an_error(chat_server, endpoint):
    chat_server.replies = [429, 500, "Fine."]
    assert endpoint.ask("1?") == "Fine." and len(chat_server.requests) == 3
    chat_server.replies = [503]
    with pytest.raises(ChatEndpointError, match="503"):
        endpoint.ask("2?")
    chat_server.replies = [401]
    asked = len(chat_server.requests)
    with pytest.raises(ChatEndpointError, match="401"):
        endpoint.ask("3?")
    assert len(chat_server.requests) == asked + 1  # a wrong key does not become right


@pytest.mark.parametrize(
    "reply",
    [
        b"{not json",
        b"[1, 2]",
        b'"hello"',
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        (None, "stop"),
        "  ",
    ],
)
def test_nonsense_is_one_clear_error(chat_server, endpoint, reply):
    chat_server.replies = [reply]
    with pytest.raises(ChatEndpointError, match="127.0.0.1"):
        endpoint.ask("Well?")


def test_cut_off_answers_and_dead_servers(chat_server, endpoint):
    chat_server.replies = [("The face is", "length")]
    with pytest.raises(CutOffAnswerError, match="longer than 512 tokens"):
        endpoint.ask("Well?")
    gone = ChatEndpoint("http://127.0.0.1:9/v1", "judge-1", max_retries=0, timeout=2)
    with pytest.raises(ChatEndpointError, match="127.0.0.1:9"):
        gone.ask("Well?")
    with pytest.raises(ValueError, match="the model's name"):
        ChatEndpoint(chat_server.url, "")


def test_answers_are_kept_and_not_asked_for_again(chat_server, tmp_path):
    chat_server.replies = ["7", "8"]
    log = tmp_path / "answers.jsonl"
    first = ChatEndpoint(chat_server.url, "judge-1", log=log)
    assert [first.ask("a?"), first.ask("a?"), first.ask("a?", seed=1)] == ["7", "7", "8"]
    with log.open("a") as file:
        file.write('\n{"key": "half a li')  # as a killed run leaves it
    again = ChatEndpoint(chat_server.url, "judge-1", log=log)
    assert again.ask("a?") == "7" and again.ask("a?", seed=1) == "8" and len(chat_server.requests) == 2
    assert again.ask("b?") == "8" and ChatEndpoint(chat_server.url, "judge-1", log=log).ask("b?") == "8"
    assert len(chat_server.requests) == 3
    assert ChatEndpoint(chat_server.url, "judge-2", log=log).ask("a?") == "8" and len(chat_server.requests) == 4


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("7", 7),
        ("7.5\nBecause it is good.", 7.5),
        ("Score: 7/10", 7),
        ("**8** out of 10", 8),
        ('{"score": 9}', 9),
        ("\n\nRating: 3.", 3),
        ("10/10", 10),
        ("The score:\n4", 4),
    ],
)
def test_ratings_are_read(answer, rating):
    assert parse_rating(answer, 1, 10) == rating


@pytest.mark.parametrize("answer", ["", "Good!", "6 8", "between 6 and 8", "11", "-3", "0", "v2 is fine", "7th"])
def test_what_is_no_rating_is_refused(answer):
    with pytest.raises(UnusableRatingError):
        parse_rating(answer, 1, 10)


def test_repeated_ratings_with_spread(chat_server, endpoint):
    chat_server.replies = [
        lambda request: str(5 + request["seed"] // 1000 + ("b" in request["messages"][0]["content"]))
    ]
    ratings, failures = rate(endpoint, PROMPT, [{"thing": "x"}, {"thing": "b"}], repeats=3)
    assert ratings.tolist() == [[5, 6, 7], [6, 7, 8]] and not failures
    assert summarize_ratings(ratings) == {"spread": 1.0, "repeats": [5.5, 6.5, 7.5], "failed": 0}
    assert item_means(np.array([[5, np.nan], [np.nan, np.nan]])).tolist()[0] == 5


def test_answers_of_no_use_are_asked_for_again_and_failures_are_counted(chat_server, endpoint):
    def moody(request):
        hopeless = "hopeless" in request["messages"][0]["content"]
        return "no idea" if hopeless or request["seed"] % 1000 == 0 else "4"

    chat_server.replies = [moody]
    things = [{"thing": "x"}] * 9 + [{"thing": "the hopeless"}]
    ratings, failures = rate(endpoint, PROMPT, things, repeats=1, max_failures=0.1)
    assert np.isnan(ratings[9, 0]) and (ratings[:9] == 4).all() and "item 9" in failures[0]
    with pytest.raises(ChatEndpointError, match="1 of 10 ratings failed"):
        rate(endpoint, PROMPT, things, repeats=1, max_failures=0.0)
    with pytest.raises(ValueError, match="0 items"):
        rate(endpoint, PROMPT, [])


def test_the_three_judged_metrics(chat_server, endpoint):
    seen = []

    def reply(request):
        content = request["messages"][-1]["content"]
        seen.append(content)
        return "60\nMost details are right." if isinstance(content, list) else "8"

    chat_server.replies = [reply]
    found = VlmScore(endpoint, repeats=2).compute(predictions=[Image.new("RGB", (4, 4))] * 2, references=["a man"] * 2)
    assert found["vlm_score"] == 60 and found["spread"] == 0 and found["judge"] == "judge-1"
    assert found["prompt"]["version"] == "1" and "a man" in seen[0][1]["text"]
    found = DescriptionScore(endpoint, repeats=1).compute(predictions=["A man."], references=["A bald {man}."])
    assert found["description_score"] == 8 and found["spread"] is None and "A bald {man}." in seen[-1]
    found = ConversationScore(endpoint).compute(predictions=["No."], references=["yes"], questions=["Is he bald?"])
    assert found["conversation_score"] == 8 and "Is he bald?" in seen[-1]
