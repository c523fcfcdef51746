"""Every case against its peers, as pytest-benchmark runs it. Run by `python -m bench`; no time is asserted."""


def test_case(threads, case, measured):
    row = measured(case, threads)
    assert row.n >= 5
