"""Everything that talks to AWS through boto3, one file a concern; answers in our values and errors."""
