"""What is raised where Dagster's storage cannot be asked. It takes long to import."""

from typing import Final

import psycopg2
import sqlalchemy.exc
from dagster_postgres.utils import DagsterPostgresException

STORAGE_ERRORS: Final = (psycopg2.Error, sqlalchemy.exc.SQLAlchemyError, DagsterPostgresException)
"""Of the driver, of SQLAlchemy, and of dagster-postgres after its last try."""
