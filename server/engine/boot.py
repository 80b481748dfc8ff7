"""The first lines of the engine process, before anything heavy is imported."""

from weft.server import garbage


def boot() -> None:
    """Imports the engine and runs it; see `process.main`."""
    with garbage.importing():
        from weft.server.engine.process import main  # torch and transformers
    main()


if __name__ == "__main__":
    boot()
