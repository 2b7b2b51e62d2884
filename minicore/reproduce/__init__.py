"""The figures and tables of the paper, one module each: data in, numbers out.

``experiments`` lists them, ``runner`` measures them and keeps the results, ``material`` holds the model and
the texts they share, and ``verdict`` says whether numbers agree with the paper.
"""
