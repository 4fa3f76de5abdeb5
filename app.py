"""The entry point of a Space, ``make run`` and ``python app.py``. ``python app.py --toy`` needs no model."""

from ui.launch import main

if __name__ == "__main__":
    main()
