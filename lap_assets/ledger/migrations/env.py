"""What alembic runs for every command: the migrations, on the connection it is handed."""

from alembic import context

from lap_assets.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    transactional_ddl=True,
)
context.run_migrations()
