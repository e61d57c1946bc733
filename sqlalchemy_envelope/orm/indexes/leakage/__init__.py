"""What a blind index tells somebody who has the database: measured on the column, and told in words."""
