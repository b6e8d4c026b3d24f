"""What is shown of the progress of a large corpus."""

from wiggle.bulk_journal import Limits, State
from wiggle.bulk_progress import Progress
from wiggle.readers import FileSequence


def test_progress_tells_documents_tokens_speed_and_the_time_left():
    files = FileSequence(["a", "b"], [600, 400])
    progress = Progress(files, Limits(), State(), expected=2000)
    progress.start_share = 0.0
    state = State(tokens={"train": 9000, "val": 1000}, documents={"train": 90, "val": 10})
    state.text_bytes = {"train": 39_000_000, "val": 1_000_000}
    line = progress.line(state, share=0.25, seconds=20.0)
    assert line == "100 of 2,000 documents, 10,000 tokens, 2.0 MB/s, 25%, 0:01:00 left"
    assert progress._share(state, done=500) == 0.5
    progress.limits = Limits(max_tokens=12_500)
    assert progress._share(state, done=500) == 0.8
