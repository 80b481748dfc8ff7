"""Why an adapter was refused."""


class AdapterInvalid(ValueError):
    """An adapter that cannot be served exactly.

    `where` names the file, tensor or config field at fault; `reason` says what is wrong with it and,
    where there is one, what to do about it. Neither ever holds a server path.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason
