"""Cases that bring every two values of different factors together, instead of all values of all factors."""

from itertools import combinations, product


def every_pair(*factors):
    """Rows with one value per factor; every pair of values of two factors is in a row at least.

    Takes the row with most pairs that are not there yet until none is left: about as many rows as the two largest
    factors have combinations.
    """
    rows = list(product(*(range(len(factor)) for factor in factors)))
    pairs = {row: set(combinations(enumerate(row), 2)) for row in rows}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs[row] & missing)))
        missing -= pairs[chosen[-1]]
    return [tuple(factor[index] for factor, index in zip(factors, row, strict=True)) for row in chosen]
