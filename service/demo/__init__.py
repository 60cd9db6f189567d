"""`make demo`: real photographs, an index of them, example queries, the page.

Runs the same commands a user would type and prints them, so that the demo teaches the product.
"""
