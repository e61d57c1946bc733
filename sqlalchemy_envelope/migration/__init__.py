"""Move values into encrypted columns while the application runs: expand, track, backfill, verify, cut over,
contract. The way back is open at any moment before the contract.

The columns of a row tell how far the row is (`orm.columns.previous`). So no value can be encrypted twice, and
a migration that stops at any point goes on from there. The state tables only spare a second look at finished
rows. Nothing here knows of revisions or of a command line.
"""

from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.campaign.report import CampaignReport, CampaignStatus, Released
from sqlalchemy_envelope.migration.aio import AsyncMigrator
from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.migration.foreign_types import FernetText, PartlyPlaintext, PgCryptoText, Revealed
from sqlalchemy_envelope.migration.inspection.findings import Finding
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.reports import (
    ColumnStatus,
    IndexReport,
    Progress,
    ReencryptReport,
    RepairReport,
    RunReport,
    VerifyReport,
)
from sqlalchemy_envelope.migration.running.runner import Pace

__all__ = [
    "AsyncMigrator",
    "Campaign",
    "CampaignReport",
    "CampaignStatus",
    "ColumnStatus",
    "Finding",
    "FernetText",
    "IndexReport",
    "Migrator",
    "Pace",
    "PartlyPlaintext",
    "PgCryptoText",
    "Phase",
    "Progress",
    "ReencryptReport",
    "Released",
    "RepairReport",
    "Revealed",
    "RunReport",
    "VerifyReport",
]
