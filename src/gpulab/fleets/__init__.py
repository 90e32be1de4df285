"""Carrying out what a whole class needs: many accounts at once, one outcome for each student, nothing twice."""
