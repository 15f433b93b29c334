"""The endpoints: what each call answers, and how answers are rendered."""
