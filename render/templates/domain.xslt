<?xml version="1.0"?>
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:output omit-xml-declaration="yes" indent="yes"/>
  <xsl:template match="node()|@*">
    <xsl:copy><xsl:apply-templates select="node()|@*"/></xsl:copy>
  </xsl:template>
  <!-- The host's page cache would hold the database's pages twice and hide lost writes. -->
  <xsl:template match="/domain/devices/disk[@device='disk']/driver">
    <xsl:copy>
      <xsl:apply-templates select="@*[name() != 'cache' and name() != 'io' and name() != 'discard']"/>
      <xsl:attribute name="cache">none</xsl:attribute>
      <xsl:attribute name="io">native</xsl:attribute>
      <xsl:attribute name="discard">unmap</xsl:attribute>
    </xsl:copy>
  </xsl:template>
  <!-- The data volume is found by this serial, /dev/disk/by-id/virtio-data, whatever its letter. -->
  <xsl:template match="/domain/devices/disk[@device='disk'][target/@dev='vdb']">
    <xsl:copy>
      <xsl:apply-templates select="@*|node()[name() != 'serial']"/>
      <serial>data</serial>
    </xsl:copy>
  </xsl:template>
</xsl:stylesheet>
