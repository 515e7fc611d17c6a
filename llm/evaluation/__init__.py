"""What a run measures and shows: metrics, exact solutions, tables and pictures.

metrics            Evaluation, Metric, METRICS: to add a metric, change this file only
statistics         means with standard errors, BLEU
exact              exact solutions of the embedded games
win_rates          win rates of several policies against each other
report             the console output of a run
curves             the picture of a run
comparison_report  the tables and the picture of a comparison
"""
