from tests.recordings import recordings as recordings
