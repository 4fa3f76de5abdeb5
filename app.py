"""What a Space, ``make run`` and ``python app.py`` start. ``python app.py --toy`` needs no model."""

from ui.launch import main

if __name__ == "__main__":
    main()
