"""What a command that was refused looks like."""


def assert_refused(outcome, *texts, status=2, program="lap"):
    """Exit status, nothing on stdout, and one line on stderr that holds the texts."""
    code, out, err = outcome
    assert (code, out) == (status, ""), err
    assert err.startswith(f"{program}: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for text in texts:
        assert text in err
