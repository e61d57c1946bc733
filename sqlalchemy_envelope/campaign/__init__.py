"""Keys for owners who are away: a campaign makes keys now, and owners take them over at their next login.

Nothing here moves a value: code that encrypts, reads or counts the rows of an encrypted column belongs to
`migration`.
"""

from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.campaign.report import CampaignReport, CampaignStatus, Released

__all__ = ["Campaign", "CampaignReport", "CampaignStatus", "Released"]
