/* The HPET: IA-PC HPET Specification 1.0a, section 3.2.5. The base is a placeholder, see dsdt.asl. */
DefinitionBlock ("", "SSDT", 2, "COFFER", "HPET", 0x00000001)
{
    Device (\_SB.HPET)
    {
        Name (_HID, EisaId ("PNP0103"))
        Name (_UID, 0x00)
        Name (_CRS, ResourceTemplate ()
        {
            Memory32Fixed (ReadWrite, 0x95D70000, 0x00000400)
        })
    }
}
