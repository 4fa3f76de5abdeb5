"""Instructions to write short code, assembled from parts: the prompts of the task ``code``. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator

# What a function or command does. {n} is a number, {s} a text, {k} a key, {e} a file extension.
PYTHON = """
returns the sum of a list of numbers
returns the largest number in a list
reverses a string
returns the mean of a list of numbers
returns the median of a list of numbers
checks whether a number is prime
checks whether a string is a palindrome
returns the factorial of n
returns the first {n} Fibonacci numbers
counts the vowels in a string
counts how often each word occurs in a text
removes duplicates from a list
flattens a list of lists
returns the {n} largest numbers of a list
merges two dictionaries
sorts a list of dictionaries by the key {k}
reads a text file and returns its lines
writes a list of strings to a file, one per line
counts the lines of a file
converts Celsius to Fahrenheit
converts kilometres to miles
returns the greatest common divisor of two integers
returns the least common multiple of two integers
checks whether two strings are anagrams
splits a list into chunks of size {n}
returns the index of a value in a sorted list by binary search
sorts a list by bubble sort
sorts a list by insertion sort
returns the unique characters of a string
capitalises every word of a sentence
removes all punctuation from a string
returns the longest word in a sentence
returns the number of days between two dates
checks whether a year is a leap year
generates a random password of {n} characters
validates an email address with a regular expression
extracts all numbers from a string
returns the words of a text that begin with {s}
replaces every occurrence of {s} in a string
parses a CSV line into a list
loads a JSON file and returns the key {k}
saves a dictionary as JSON
groups a list of words by their first letter
returns the transpose of a matrix
multiplies two matrices
returns the dot product of two vectors
returns the distance between two points
computes the area of a circle
computes compound interest
returns all even numbers of a list
returns the squares of the numbers from 1 to {n}
filters a dictionary by a minimum value
inverts a dictionary
returns the most common element of a list
checks whether a list is sorted
rotates a list by {n} places
returns the intersection of two lists
returns the difference of two sets
counts the files in a folder
returns the file extension of a path
renames all files in a folder with the prefix {s}
downloads a web page and returns its title
retries another function up to {n} times
measures how long a function takes
caches the results of another function
converts a number to binary
converts a Roman numeral to an integer
encodes a string with a Caesar cipher of shift {n}
checks whether brackets in a string are balanced
returns the running total of a list
returns the prime factors of a number
draws a triangle of stars of height {n}
prints a multiplication table up to {n}
plays rock, paper, scissors against the computer
asks the user for a number until it is valid
returns True if the password has at least {n} characters and a digit
converts a list of tuples to a dictionary
zips two lists into pairs
returns the second smallest number in a list
pads a string with zeros to length {n}
truncates a string to {n} characters
counts the words in a string
""".strip().splitlines()
SHELL = """
list all files larger than {n} MB
count the lines of all {e} files
find all {e} files in the current folder
delete all files that end in {e}
replace the word {s} in all {e} files
show the {n} largest files
show the last {n} lines of a log file
search for {s} in all {e} files
print the second column of a CSV file
sort a file and remove duplicate lines
count how often each line occurs in a file
rename {e} files to upper case
copy all {e} files to a backup folder
compress a folder into a tar.gz file
extract a tar.gz file
show the disk usage of each folder
show the processes that use the most memory
kill a process by its name
download a file from a URL
print the current date in the form year-month-day
make a folder for each month
show all environment variables that contain {s}
make a script executable
find empty folders and delete them
find files changed in the last {n} days
print lines {n} to 20 of a file
count the words of a text file
convert a file to lower case
join all {e} files into one
list the users of the system
""".strip().splitlines()
ASK_PYTHON = (
    "Write a Python function that {what}.",
    "Write a short Python function that {what}. Only give the code.",
    "In Python, write a function `{name}` that {what}.",
    "Give me a Python function that {what}, with a docstring.",
    "Implement a function in Python that {what}. Add type hints.",
    "Write a Python function that {what} and show an example.",
    "Complete this Python function, which {what}:\n\ndef {name}(",
)
ASK_SHELL = (
    "Write a shell one-liner to {what}.",
    "Give me a bash command to {what}.",
    "How do I {what} in the Linux terminal?",
    "Write a bash command that will {what}. Only give the command.",
)
FILLED = {
    "n": ("3", "5", "8", "10", "12", "100"),
    "s": ("'a'", "'error'", "'test'", "'old'", "'TODO'"),
    "k": ("'name'", "'age'", "'price'", "'id'"),
    "e": (".txt", ".py", ".log", ".csv", ".jpg", ".md"),
}
NAMES = ("solve", "compute", "process", "run", "check", "convert")
HELD_OUT = 8  # every eighth kind of request is for measuring, never for training


def instructions(seed: int = 0, held_out: bool = False) -> list[str]:
    """Distinct instructions, shuffled by ``seed``; held-out ones never ask for the same thing as the others."""
    found = dict.fromkeys(_all(random.Random(0), held_out))
    out = list(found)
    random.Random(seed).shuffle(out)
    return out


def _all(rng: random.Random, held_out: bool) -> Iterator[str]:
    for things, questions in ((PYTHON, ASK_PYTHON), (SHELL, ASK_SHELL)):
        for number, thing in enumerate(things):
            if (number % HELD_OUT == HELD_OUT - 1) != held_out:
                continue
            for question in questions:
                for _ in range(3 if "{" in thing else 1):
                    what = thing.format(**{k: rng.choice(v) for k, v in FILLED.items()})
                    yield question.format(what=what, name=rng.choice(NAMES))
