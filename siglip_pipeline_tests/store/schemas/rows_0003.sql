UPDATE videos SET announcements = 2, missing_since = '2026-01-06Z' WHERE video_id = 3;
